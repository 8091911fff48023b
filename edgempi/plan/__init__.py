"""Who owns what: the Plan and the Program, their shares, costs, planners and explanation. Pure functions."""
