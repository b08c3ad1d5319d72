"""Images of ROM and SRAM: written, read, measured."""
