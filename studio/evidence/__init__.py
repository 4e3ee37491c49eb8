"""The evidence sheet: which checkpoint at which strength, why, how sure, and does it copy its pictures."""
