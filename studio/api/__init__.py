"""The HTTP interface: `/api/v1`, our own, and `/sdapi/v1`, shaped like A1111's so that its clients work."""
