"""What leaves the compiler: targets, images, programs and hardware."""
