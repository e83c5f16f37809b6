"""What the wings share: scattering, lattices, symmetry, crystals, devices. Pure functions, no user objects."""
