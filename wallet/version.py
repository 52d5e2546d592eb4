"""The one version of everything here."""

VERSION = "0.1.0"
