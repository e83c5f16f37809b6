"""From disks to strain: origin, basis vectors, robust lattice fit, deformation."""
