"""The emulated LAN: several unequal devices on one Linux machine, with links, speeds and memories of their own.

Each device is a network namespace on a bridge, with its own address, hostname, /dev/shm, processor quota and memory
limit; its link is shaped in both directions. `layout` says what there is, `network` and `cgroups` build it, `agent`
enters a device in the place of ssh, `session` brings a lab up, lends it to a job and removes it, `calibrate` sets the
speeds, `check` proves that the emulation is honest.
"""
