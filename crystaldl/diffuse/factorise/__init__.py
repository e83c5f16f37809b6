"""Physics of the diffuse wing: form factor and order by constrained least squares, without weights."""
