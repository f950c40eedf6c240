"""An asyncio-native WSGI server with async buffer streams."""

__version__ = "0.1.0"
