"""What tells a healthy run from a collapsing one: text and style of the samples, and alarms on the logged metrics."""
