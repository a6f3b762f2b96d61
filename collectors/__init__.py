"""Kernel -> events. One module per source; no thresholds of policy, no opinions.

Readers take their root as an argument.
"""
