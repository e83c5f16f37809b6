"""Readers of diffuse-scattering volumes: one module a family of formats."""
