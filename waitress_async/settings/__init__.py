"""Every setting, declared once, and all the ways to give it."""

from waitress_async.settings.command import COMMAND_DECLARATIONS, CommandSettings
from waitress_async.settings.declaration import (
    Declaration,
    check_names,
    convert_fields,
    declarations_of,
    setting,
)
from waitress_async.settings.peers import UNIX_PEER, Peers
from waitress_async.settings.places import (
    DescriptorPlace,
    InternetPlace,
    Place,
    SystemdPlace,
    UnixPlace,
    parse_listen,
)
from waitress_async.settings.reference import settings_reference
from waitress_async.settings.settings import DECLARATIONS, Settings
from waitress_async.settings.sources import Given, read_configuration, read_sources

__all__ = [
    "COMMAND_DECLARATIONS",
    "DECLARATIONS",
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
    "check_names",
    "convert_fields",
    "declarations_of",
    "parse_listen",
    "read_configuration",
    "read_sources",
    "setting",
    "settings_reference",
]
