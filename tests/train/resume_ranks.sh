# resume_ranks.sh - resuming at another number of ranks or another ep (1 <-> 2 <-> 4): loaded state is bit-identical
# to saved state, the global batches are the same, and losses agree as between runs on different numbers of ranks.
. "$(dirname "$0")/train_lib.sh"
needs_ranks

bias="moe.score_func=sigmoid moe.balance=[expert_bias,global_aux_loss]"
options="train.steps=20 checkpoint.every=10 $bias"
for from in 1:1 2:2 4:2 4:4; do
    IFS=: read -r ranks ep <<< "$from"
    source=from-$ranks-$ep
    expect 0 "$source" train "$ranks" "$source" $options parallel.ep="$ep"
    for to in 1:1 2:1 2:2 4:1 4:2 4:4; do
        [ "$to" = "$from" ] && continue
        # Not every pair is trained further: that would take long and add little.
        case $from-$to in 1:1-4:2 | 1:1-2:2 | 2:2-1:1 | 4:2-2:2 | 4:4-1:1 | 4:4-2:1) trained=1 ;; *) trained= ;; esac
        [ -n "$trained${every:-}" ] || continue
        IFS=: read -r n to_ep <<< "$to"
        copy=$source-to-$n-$to_ep
        expect 0 "$copy is loaded and saved" on "$n" "$MUSTER_RESAVE" tiny.yaml "$source/checkpoints/step-00000010" run.dir="$copy" $options parallel.ep="$to_ep"
        same_checkpoint "$source" "$copy" 10
        [ -n "$trained" ] || continue
        rm -r "$copy"
        expect 0 "$copy resumes" train "$n" "$copy" $options parallel.ep="$to_ep" --resume "$source/checkpoints/step-00000010"
        same_metrics "$source" "$copy" fp32 11 20
    done
done

# In double precision the batches and everything else agree exactly.
expect 0 "double precision" train 2 wide $options parallel.ep=2 train.device=ref train.micro_batch_size=2
for to in 1:1:4 4:4:1 4:2:0; do
    IFS=: read -r n ep micro <<< "$to"
    expect 0 "double precision, $to" train "$n" wide-$n-$ep $options parallel.ep="$ep" train.device=ref train.micro_batch_size="$micro" \
        --resume wide/checkpoints/step-00000010
    same_metrics wide wide-$n-$ep 1e-9 11 20
done
finish
