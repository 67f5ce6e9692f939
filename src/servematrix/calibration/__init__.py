"""Calibration: repeats of a healthy server become the baseline that later runs are held to."""
