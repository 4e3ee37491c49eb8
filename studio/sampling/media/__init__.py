"""What is made beside pictures: video, sound and 3D, by the pipelines of diffusers."""
