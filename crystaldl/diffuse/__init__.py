"""Single-crystal diffuse scattering: the volume, its separation and the short-range order behind it."""
