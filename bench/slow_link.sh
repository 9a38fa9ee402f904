#!/bin/sh
# slow_link.sh RATE COMMAND... - COMMAND on two ranks, each on a host of its own, with a link of RATE (as in tc: 1gbit) between
# them, each way: two network namespaces and a token bucket. Needs root, iproute2 and Open MPI.
set -eu
[ $# -ge 2 ] || { sed -n '2,3s/^# //p' "$0" >&2; exit 64; }
rate=$1
shift
one=muster-$$-1 two=muster-$$-2 agent=$(mktemp)
clean() { ip netns del $one; ip netns del $two; rm -f "$agent"; } 2> /dev/null
trap clean EXIT
ip netns add $one
ip netns add $two
ip link add veth1 netns $one type veth peer name veth2 netns $two
for n in 1 2; do
    host=muster-$$-$n
    ip -n $host addr add 10.213.8.$n/24 dev veth$n
    ip -n $host link set veth$n up
    ip -n $host link set lo up
    tc -n $host qdisc add dev veth$n root tbf rate "$rate" burst 256kb latency 200ms
done

# Instead of ssh: the other host is the other namespace, with a name of its own.
cat > "$agent" <<END
#!/bin/sh
shift
exec ip netns exec $two unshare --uts sh -c "hostname other-host; \$*"
END
chmod +x "$agent"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_pml=ob1 OMPI_MCA_btl=self,tcp OMPI_MCA_btl_tcp_if_include=10.213.8.0/24 OMPI_MCA_oob_tcp_if_include=10.213.8.0/24
ip netns exec $one unshare --uts sh -c 'hostname this-host; exec "$@"' sh mpirun --host 10.213.8.1:1,10.213.8.2:1 -n 2 \
    --bind-to none --mca plm_rsh_agent "$agent" --mca plm_rsh_no_tree_spawn 1 "$@"
