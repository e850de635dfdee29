"""Tables that are printed whole."""

from typing import Any

import pandas as pd


class Frame(pd.DataFrame):
    """A pandas.DataFrame that shows all its columns and whole texts at any width, in as many blocks as it takes.

    Example:
      >>> wide = Frame({name: ["x" * 30] for name in "abcdef"})
      >>> all(f" {name}" in repr(wide) for name in "abcdef"), "..." in repr(wide)
      (True, False)
    """

    @property
    def _constructor(self) -> type:
        return Frame

    def __repr__(self) -> str:
        with _whole():
            return super().__repr__()

    def _repr_html_(self) -> Any:
        with _whole():
            return super()._repr_html_()


def _whole() -> Any:
    width = pd.get_option("display.width") or 80
    return pd.option_context("display.max_columns", None, "display.max_colwidth", None, "display.width", width,
                             "display.expand_frame_repr", True)
