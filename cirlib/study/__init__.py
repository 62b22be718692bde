"""What every study needs before its subject: parameters, stages, whole files, several processes, errors in one sentence."""
