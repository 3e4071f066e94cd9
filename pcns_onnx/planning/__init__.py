"""From budgets to widths: importance, sensitivity, allocation, and the plan as data."""
