"""What py4D-browser finds: installed as ``py4d_browser_plugin.crystaldl``, where it looks for classes with a ``plugin_id``."""

from crystaldl.stem.browser_plugin import BraggDiskPlugin

__all__ = ["BraggDiskPlugin"]
