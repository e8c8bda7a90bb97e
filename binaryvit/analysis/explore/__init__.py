"""Looking around in stored runs, by widgets or as static pictures."""

from binaryvit.analysis.explore.explorer import Explorer, controls, widgets_run_here

__all__ = ["Explorer", "controls", "widgets_run_here"]
