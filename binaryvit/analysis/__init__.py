"""Looking into trained models: from stored runs and images, through measurements kept beside the runs, to figures."""
