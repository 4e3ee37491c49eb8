"""The main job on the pocket base, start to end."""
