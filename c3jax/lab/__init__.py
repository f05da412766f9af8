"""Studies: credit estimators measured on games whose truth is known exactly, all on the device."""
