"""Reasoning formats: one small file each."""
