# dead_link.sh - two hosts, made of network namespaces, and the link between them goes down: all ranks exit
# with an error instead of hanging. Skipped where namespaces cannot be created.
. "$(dirname "$0")/train_lib.sh"
needs_ranks

one=muster-$$-1 two=muster-$$-2
clean() { ip netns del $one; ip netns del $two; } 2> /dev/null
command -v ip > /dev/null && ip netns add $one 2> /dev/null && ip netns add $two || { clean; skip "no network namespaces here"; }
trap 'clean; cd /; rm -rf "$work"' EXIT
ip link add veth1 netns $one type veth peer name veth2 netns $two || skip "no virtual links here"
ip -n $one addr add 10.213.7.1/24 dev veth1 && ip -n $one link set veth1 up && ip -n $one link set lo up
ip -n $two addr add 10.213.7.2/24 dev veth2 && ip -n $two link set veth2 up && ip -n $two link set lo up

# Instead of ssh: the other host is the other namespace, with its own name.
cat > agent <<END
#!/bin/sh
shift
exec ip netns exec $two unshare --uts sh -c "hostname other-host; \$*"
END
chmod +x agent
export OMPI_MCA_btl=self,vader,tcp OMPI_MCA_btl_tcp_if_include=10.213.7.0/24 OMPI_MCA_oob_tcp_if_include=10.213.7.0/24
ip netns exec $one unshare --uts sh -c "hostname this-host; exec \"$MPIEXEC\" --oversubscribe --host 10.213.7.1:1,10.213.7.2:1 -n 2 \
    --mca plm_rsh_agent $work/agent --mca plm_rsh_no_tree_spawn 1 --wdir $work \"$MUSTER\" train tiny.yaml run.dir=run \
    train.steps=1000000 run.watchdog=4" > log 2>&1 &
job=$!
wait_for "the steps" "[ -s run/metrics.jsonl ]"
if grep -q '"host":"other-host"' run/run.json; then pass; else fail "both ranks are on one host: $(grep -o '"ranks".*' run/run.json)"; fi
ip -n $one link set veth1 down
before=$SECONDS
wait_for "the end of all ranks" "! pgrep -f 'run.dir=run [t]rain.steps=1000000 run.watchdog=4' | xargs -r ps -o comm= -p | grep -q muster"
if [ $((SECONDS - before)) -lt 30 ]; then pass; else fail "the ranks are still there after $((SECONDS - before)) s"; fi
kill -9 $job        # mpirun itself waits for its daemon behind the link until TCP gives up
wait $job 2> /dev/null
says "a dead link" "error: rank 0: no rank has made progress for [4-7] s"
says "a dead link" "  rank 1 on other-host: no message"
pkill -9 -f "run.dir=run [t]rain.steps=1000000 run.watchdog=4"
finish
