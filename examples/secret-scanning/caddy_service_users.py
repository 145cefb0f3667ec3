"""Finds tokens of service users: a plugin for detect-secrets.

    detect-secrets scan --plugin caddy_service_users.py
"""
import re

from detect_secrets.plugins.base import RegexBasedDetector


class CaddyServiceUserDetector(RegexBasedDetector):
    """A token of a service user."""

    secret_type = "Caddy service user token"

    denylist = [re.compile(r"csu_[0-9A-Za-z]{49}")]
