"""What runs a program: the simulator with its kernels, and the hardware in two simulations."""
