"""The pocket base: a small Stable Diffusion of our own, its pictures, its checker, how it is built."""
