//! The array as a closed event machine: it decides, workers do.
