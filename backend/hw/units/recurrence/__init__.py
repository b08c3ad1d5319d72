"""The recurrence unit: linear attention on states in the H-Units."""
