"""The tiny guest of computes with virtual machines: Debian's cloud kernel, an initial disk with busybox, an empty disk.

Its console log tells what a check wants to know of a network: `LEASE ADDRESS/LENGTH` when DHCP has answered,
`PING ADDRESS OK` or `PING ADDRESS LOST` whenever one of the addresses that it was given begins or ceases to answer, and
once it has begun `RTT ADDRESS MIN/MEAN/MAX ms` of twenty echoes. The addresses come from `ping=ADDRESS,...` on the
kernel's command line (the image's `os_command_line`), or from the property `ping` of the server when it has a config
drive. It answers pings itself.
"""

from __future__ import annotations

from pathlib import Path

from discovery_deploy.software.image import apt_acquire_options
from discovery_deploy.software.stack import CERTIFICATES, Environment, build_inside
from discovery_deploy.system.files import digest, made_once
from discovery_deploy.system.progress import Progress

RECIPE = 1
"""Raise it when the build makes something else from the same texts."""
MODULES = ("virtio_pci", "virtio_net", "sr_mod", "ata_piix", "isofs")
"""Kernel modules that the guest loads, after those that they need: network, and a config drive."""
FILES = ("vmlinuz", "initrd.gz", "blank.img")

INIT = r"""#!/bin/busybox sh
# The guest's only program.
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /tmp /config
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
say() { echo "$* at $(cut -d' ' -f1 /proc/uptime)"; }
for module in $(cat /modules/order); do insmod "/modules/$module.ko"; done
say GUEST-UP
ip link set lo up; ip link set eth0 up
cat > /tmp/leased <<'END'
#!/bin/busybox sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev eth0
[ -z "$mtu" ] || ip link set eth0 mtu "$mtu"
[ -z "$router" ] || ip route add default via "$router"
echo "LEASE $ip/$mask at $(cut -d' ' -f1 /proc/uptime)" > /dev/console
END
chmod +x /tmp/leased
until udhcpc -i eth0 -s /tmp/leased -n -q -t 3 -T 2 -O mtu > /dev/null 2>&1; do say NO-LEASE; done
targets=$(tr ' ' '\n' < /proc/cmdline | sed -n 's/^ping=//p')
if [ -e /dev/sr0 ] && mount -t iso9660 -o ro /dev/sr0 /config 2> /dev/null; then
    targets="$targets,$(sed -n 's/.*"ping": *"\([0-9.,]*\)".*/\1/p' /config/openstack/latest/meta_data.json)"
fi
while :; do
    for target in $(echo "$targets" | tr , ' '); do
        if ping -c 1 -W 1 "$target" > /dev/null 2>&1; then now=OK; else now=LOST; fi
        was=$(cat "/tmp/$target" 2> /dev/null)
        if [ "$now" != "${was:-LOST}" ]; then
            say "PING $target $now"
            # the least of several: the first waits for ARP, and an emulated processor adds to each
            if [ "$now" = OK ]; then say "RTT $target $(ping -q -A -c 20 -W 1 "$target" | sed -n 's/.* = //p')"; fi
        fi
        echo "$now" > "/tmp/$target"
    done
    sleep 1
done
"""

BUILD = r"""
export DEBIAN_FRONTEND=noninteractive
printf '%s\n' "$APT_OPTIONS" > /etc/apt/apt.conf.d/99guest
apt-get --quiet=2 update
echo "I: getting a kernel for guests"
apt-get --quiet=2 --yes --no-install-recommends install busybox-static cpio kmod
mkdir -p /run/guest/root/bin /run/guest/root/modules
cd /run/guest
package=$(apt-cache depends "linux-image-cloud-$(dpkg --print-architecture)" \
    | sed -n 's/^ *Depends: *\(linux-image-[0-9].*\)$/\1/p' | head -n 1)
apt-get --quiet=2 -o APT::Sandbox::User=root download "$package"
dpkg -x "$package"_*.deb kernel
# take MODULE: after those that it needs
take() {
    local file name
    grep -qx "$1" root/modules/order && return
    file=$(find kernel/lib/modules -name "$1.ko" -o -name "${1//_/-}.ko" | head -n 1)
    test -n "$file" || return 0  # built in
    for name in $(modinfo -F depends "$file" | tr , ' '); do take "$name"; done
    cp "$file" "root/modules/$1.ko"
    echo "$1" >> root/modules/order
}
: > root/modules/order
for module in $MODULES; do take "$module"; done
cp /bin/busybox root/bin/busybox
printf '%s' "$INIT" > root/init
chmod 755 root/init
cp kernel/boot/vmlinuz-* "$PREFIX/vmlinuz"
(cd root && find . | sort | cpio --quiet --create --format=newc --owner=0:0) | gzip -9n > "$PREFIX/initrd.gz"
truncate --size=1M "$PREFIX/blank.img"
{ dpkg-deb --show --showformat='linux ${Version}\n' "$package"_*.deb
  dpkg-query --show --showformat='busybox ${Version}\n' busybox-static; } > "$PREFIX/versions"
"""


def guest(cache: Path, image: Path, progress: Progress) -> Environment:
    """The guest's files (`FILES`), built inside the image from Debian's packages if not cached.

    Args:
        cache: directory of the cache.
        image: base tree of the hosts; it is not changed.
        progress: takes one short line per step.
    Raises:
        TestbedError: packages could not be had, or the build failed; the end of its output is quoted.
    """
    cache, image = cache.absolute(), image.absolute()
    hash_ = guest_hash(image.name)
    target = cache / "environments" / f"guest-{hash_}"

    def build(partial: Path) -> None:
        progress("building the guest of virtual machines (once)")
        given = {"INIT": INIT, "MODULES": " ".join(MODULES), "APT_OPTIONS": apt_options(apt_acquire_options())}
        build_inside(cache, image, partial, target.name, BUILD, given, {}, progress)

    made_once(target, build, "the guest of virtual machines", progress)
    text = (target / "versions").read_text(encoding="utf-8")
    return Environment(name=target.name, hash=hash_, versions=dict(line.split() for line in text.splitlines()))


def guest_hash(image: str) -> str:
    """Hash of the guest, known without building it, from the base image's. The kernel's day is not in it."""
    return digest(RECIPE, "guest", image, INIT, BUILD, MODULES)


def apt_options(lines: list[str]) -> str:
    """This machine's apt options as they are true inside a build, where certificates lie elsewhere. Pure."""
    kept = [line for line in lines if "::CaPath" not in line]
    return "\n".join(f'Acquire::https::CaInfo "{CERTIFICATES}";' if "::CaInfo" in line else line for line in kept)
