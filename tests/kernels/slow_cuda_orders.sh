# slow_cuda_orders.sh - the CUDA kernels give the same bits whatever order a block's threads run in between two barriers: forward,
# backward and shuffled. A race, or a barrier that is missing, does not.
export MUSTER_CASES_PAD=8               # aligned: the fast kernels, which share memory most
failed=0
for kind in cuda cuda-bf16; do
    first=
    for order in forward shuffled:7 backward; do
        said=$(MUSTER_EMULATED_ORDER=$order "$MUSTER_CASES" $kind | tail -n 1)
        case $said in
            *" digest "*) ;;
            *) echo "FAILED: $kind, $order: $said"; failed=1 ;;
        esac
        [ -n "$first" ] || first=$said
        [ "$said" = "$first" ] || { echo "FAILED: $kind: forward says '$first', $order '$said'"; failed=1; }
    done
    echo "$first"
done
exit $failed
