"""Physics of the powder wing: lattices from lines and from the profile, absences, extinction groups."""
