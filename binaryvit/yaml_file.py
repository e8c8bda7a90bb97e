"""YAML files that people write: a mapping in each."""

import re
from pathlib import Path
from typing import Any

import yaml

from binaryvit.errors import BinaryViTError


class _Loader(yaml.SafeLoader):
    """YAML 1.1's safe loader, which also reads 5e-4 as a number, as its writer means it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [self.construct_object(key) for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `BinaryViTError` where there is none, or a name is given twice."""
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise BinaryViTError(f"{path} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        raise BinaryViTError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise BinaryViTError(f"{path} must hold lines of `name: value`.")
    return content
