"""Lets the site show the `Example:` of a docstring as an example, the way it shows `Examples:`."""

import re

import griffe


class Example(griffe.Extension):
    def on_instance(self, *, obj, **_):
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
