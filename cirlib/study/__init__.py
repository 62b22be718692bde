"""What every study needs first: parameters, stages, whole files, several processes, errors in one sentence."""
