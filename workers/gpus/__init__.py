"""GPUs of this host: read through NVML or simulated, judged, and watched for as long as the agent lives."""
