"""Tests of the diffuse wing; a package, so that its modules may be named as those of other wings."""
