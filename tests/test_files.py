"""Files that the library writes can be read by whoever may read other files of their folder."""

from binaryvit.files import write_text_atomically


def test_a_written_file_has_the_rights_of_any_new_file(tmp_path):
    write_text_atomically(tmp_path / "written", "x")
    (tmp_path / "any").touch()
    assert (tmp_path / "written").stat().st_mode == (tmp_path / "any").stat().st_mode
