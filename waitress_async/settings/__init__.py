"""Every setting, declared once, and all the ways to give it."""

from waitress_async.settings.command import COMMAND_DECLARATIONS, CommandSettings
from waitress_async.settings.declaration import Declaration
from waitress_async.settings.other_servers import option_called
from waitress_async.settings.peers import UNIX_PEER, Peers
from waitress_async.settings.places import (
    DescriptorPlace,
    InternetPlace,
    Place,
    SystemdPlace,
    UnixPlace,
)
from waitress_async.settings.rules import LISTENING
from waitress_async.settings.settings import DECLARATIONS, Settings
from waitress_async.settings.sni import parse_sni
from waitress_async.settings.sources import Given, read_configuration, read_sources

__all__ = [
    "COMMAND_DECLARATIONS",
    "DECLARATIONS",
    "LISTENING",
    "UNIX_PEER",
    "CommandSettings",
    "Declaration",
    "DescriptorPlace",
    "Given",
    "InternetPlace",
    "Peers",
    "Place",
    "Settings",
    "SystemdPlace",
    "UnixPlace",
    "option_called",
    "parse_sni",
    "read_configuration",
    "read_sources",
]
