"""PCNS: groups rebuilt on the principal components of their outputs (`calibration.eigenbasis` finds them)."""
