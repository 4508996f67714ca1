"""Figures of cells that nobody measured: the engine model, calibrated where rows exist."""
