"""4D-STEM: Bragg disks under multiple scattering, their positions and intensities, and the strain they show."""
