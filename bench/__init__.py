"""What Anole costs, measured: every figure beside the limit of the machine that it runs on."""
