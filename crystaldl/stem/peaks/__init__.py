"""Positions of disks: least squares of their pixels, batched."""
