"""Small wrong changes to joints of the package, each with tests that must notice; `test_mutants.py` tries them."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mutant:
    """One text of the package, what it becomes, and the tests of which at least one then fails."""

    name: str
    right: str
    wrong: str
    tests: tuple[str, ...]

    def file_in(self, package: Path) -> Path:
        """The file that holds the text, wherever it was moved to.

        Raises:
            LookupError: it is not there, or more than once.
        """
        found = [path for path in sorted(package.rglob("*.py")) for _ in range(path.read_text().count(self.right))]
        if len(found) != 1:
            raise LookupError(f"mutant {self.name} is outdated: its text is {len(found)} times in the package")
        return found[0]


RIDGE_COUNTS = (
    "tests/pipelines/test_reconstruction.py"
    "::test_the_bias_and_what_all_images_have_without_a_place_count_as_carried_where_a_ridge_is_chosen"
)
MUTANTS = (
    Mutant(
        "certificate-of-the-calmest-class",
        "totals.model_difference / min(totals.spread)",
        "totals.model_difference / max(totals.spread)",
        ("tests/pipelines/test_conversion.py::test_the_certificate_is_relative_to_the_class_whose_logits_vary_least",),
    ),
    Mutant(
        "bias-of-what-prototypes-leave",
        "return self.residual + self.unplaced + self.bias",
        "return self.residual + self.unplaced - self.bias",
        ("tests/pipelines/test_amount_edits.py::test_what_prototypes_carry_and_what_they_leave_each_have_the_bias",),
    ),
    Mutant(
        "ridge-stops-at-the-share-carried",
        "if ridge != RIDGES[0] and share is not None and share < LEAST_SHARE:",
        "if ridge != RIDGES[0] and share is not None and share > LEAST_SHARE:",
        (
            "tests/pipelines/test_reconstruction.py"
            "::test_a_ridge_is_taken_only_where_rows_cancel_and_only_while_the_prototypes_carry_the_logit",
        ),
    ),
    Mutant(
        "ridge-counts-the-bias",
        "carried = rows[:, 0] @ made.mT + unplaced + offset",
        "carried = rows[:, 0] @ made.mT + unplaced",
        (RIDGE_COUNTS,),
    ),
    Mutant(
        "ridge-counts-rows-without-a-place",
        "carried = rows[:, 0] @ made.mT + unplaced + offset",
        "carried = rows[:, 0] @ made.mT + offset",
        (RIDGE_COUNTS,),
    ),
    Mutant(
        "peak-of-usual-amounts",
        "peaks = (part.sample.double() @ readers.mT).amax(dim=1)",
        "peaks = (part.sample.double() @ readers.mT).sum(dim=1)",
        ("tests/pipelines/test_reconstruction.py::test_a_usual_amount_is_one",),
    ),
    Mutant(
        "covariance-within-classes",
        "whole = whole - whole.mean(dim=0)",
        "whole = whole + whole.mean(dim=0)",
        (
            "tests/pipelines/test_amount_edits.py"
            "::test_an_edit_of_every_class_reads_the_part_along_directions_in_which_images_vary",
        ),
    ),
    Mutant(
        "unit-of-examples",
        "score=examples.score / length, map=examples.map / length",
        "score=examples.score * length, map=examples.map * length",
        ("tests/pipelines/test_conversion.py::test_examples_are_in_the_unit_of_their_prototypes",),
    ),
    Mutant(
        "intercept-goes-back-to-the-residual",
        "left * (residual + intercept), bias - intercept, 0.0",
        "left * (residual - intercept), bias - intercept, 0.0",
        ("tests/pipelines/test_augmentation.py::test_an_intercept_counts_once_whatever_carries_the_residual[paper]",),
    ),
    Mutant(
        "intercept-leaves-the-bias",
        "left * (residual + intercept), bias - intercept, 0.0",
        "left * (residual + intercept), bias + intercept, 0.0",
        ("tests/pipelines/test_augmentation.py::test_an_intercept_counts_once_whatever_carries_the_residual[paper]",),
    ),
    Mutant(
        "mean-over-pairs-of-a-label",
        "total = total + squared[same].mean()",
        "total = total + squared[same].sum()",
        ("tests/pipelines/test_fewshot_finetuning.py::test_attraction_is_a_mean_over_pairs_whatever_their_number",),
    ),
    Mutant(
        "largest-contribution-first",
        "sorted(found.contributions, key=lambda c: -abs(c.contribution))",
        "sorted(found.contributions, key=lambda c: abs(c.contribution))",
        ("tests/pipelines/test_verbs.py::test_the_ledger_adds_up[loaded-presence-None]",),
    ),
    Mutant(
        "an-edit-takes-away",
        "head.addr_(scores, reader, alpha=-1.0)",
        "head.addr_(scores, reader, alpha=1.0)",
        (
            "tests/pipelines/test_amount_edits.py"
            "::test_everywhere_no_class_gives_anything_for_a_row_that_is_the_prototype",
        ),
    ),
    Mutant(
        "an-edit-leaves-rows-without-a-place",
        "lost = (model.class_head(c).vector - edited.class_head(c).vector) @ mean",
        "lost = (edited.class_head(c).vector - model.class_head(c).vector) @ mean",
        ("tests/pipelines/test_amount_edits.py::test_what_rows_without_a_place_add_on_average_stays",),
    ),
    Mutant(
        "sides-of-gates",
        "self.value >= self.limit if self.name.startswith",
        "self.value <= self.limit if self.name.startswith",
        ("tests/cli/test_batch.py::test_on_which_side_of_a_threshold_a_value_must_be",),
    ),
    Mutant(
        "train-and-val",
        "return data.child(present[split]), split",
        "return data.child(next(iter(present.values()))), split",
        ("tests/files/test_datasets.py::test_splits",),
    ),
    Mutant(
        "corners-of-a-box",
        "rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))",
        "columns, rows = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))",
        ("tests/maths/test_small.py::test_box_is_around_the_peak_only",),
    ),
    Mutant(
        "corners-of-an-example",
        "left, top, right, bottom = examples.box[number].tolist()",
        "top, left, bottom, right = examples.box[number].tolist()",
        ("tests/pipelines/test_verbs.py::test_boxes_of_the_training_patches_are_around_their_maps",),
    ),
    Mutant(
        "share-of-all-images-skipped",
        "share = len(skipped) / max(1, read + len(skipped))",
        "share = len(skipped) / max(1, read)",
        ("tests/cli/test_commands.py::test_unreadable_images_are_skipped_named_and_counted",),
    ),
    Mutant(
        "dtypes-of-a-file",
        "if tensor.dtype != dtype or tensor.ndim != len(shape):",
        "if tensor.ndim != len(shape):",
        ("tests/files/test_store.py::test_wrong_content_with_a_right_checksum_is_refused[prototypes-value3-float64]",),
    ),
    Mutant(
        "needs-take-a-prototype-out",
        "return logits[:, None] - scores[:, prototypes, None] * self.effects[prototypes]",
        "return logits[:, None] + scores[:, prototypes, None] * self.effects[prototypes]",
        ("tests/pipelines/test_audit.py::test_needs_are_the_accuracy_of_the_edited_model[16777216]",),
    ),
    Mutant(
        "needs-of-the-prototype-s-own-class",
        "if self.owner[k] == target]",
        "if self.owner[k] != target]",
        ("tests/pipelines/test_audit.py::test_needs_are_the_accuracy_of_the_edited_model[16777216]",),
    ),
    Mutant(
        "a-removal-keeps-the-mean-without-a-place",
        "(whole if amounts is None else whole - amounts.unplaced_mean)",
        "(whole if amounts is None else whole)",
        ("tests/pipelines/test_audit.py::test_a_removal_is_the_edit_that_the_command_makes[vit]",),
    ),
    Mutant(
        "a-trial-takes-its-prototype-out",
        "return logits - scores.gather(1, prototype[:, None])",
        "return logits + scores.gather(1, prototype[:, None])",
        ("tests/pipelines/test_audit.py::test_a_removal_is_the_edit_that_the_command_makes[converted]",),
    ),
    Mutant(
        "left-is-not-flipped",
        "left=after == wanted == left)",
        "left=after == wanted)",
        ("tests/pipelines/test_audit.py::test_a_trial_says_what_the_network_answers_to_the_changed_image",),
    ),
    Mutant(
        "what-is-left-was-not-caused",
        "return self.flips.value - self.left.value",
        "return self.flips.value + self.left.value",
        ("tests/pipelines/test_audit.py::test_score_and_verdict",),
    ),
    Mutant(
        "hosts-are-of-other-classes",
        "(self.target != class_index) & (self.top",
        "(self.target == class_index) & (self.top",
        ("tests/pipelines/test_audit.py::test_a_trial_says_what_the_network_answers_to_the_changed_image",),
    ),
    Mutant(
        "hosts-are-taken-for-other-classes",
        "& (self.top != class_index))",
        "& (self.top == class_index))",
        ("tests/pipelines/test_audit.py::test_a_trial_says_what_the_network_answers_to_the_changed_image",),
    ),
    Mutant(
        "verdict-beats-its-baseline",
        "transplant.flips.low > transplant.elsewhere.value",
        "transplant.flips.low < transplant.elsewhere.value",
        ("tests/pipelines/test_audit.py::test_score_and_verdict",),
    ),
    Mutant(
        "verdict-after-a-closer-look",
        "if transplant is None or not transplant.elsewhere.trials or score",
        "if transplant is None or score",
        ("tests/pipelines/test_audit.py::test_what_was_not_looked_at_closer_gets_no_verdict",),
    ),
    Mutant(
        "outside-the-object",
        "outside = (maps * (1 - inside)",
        "outside = (maps * (0 + inside)",
        ("tests/pipelines/test_audit.py::test_what_lies_outside_is_counted_on_the_maps_that_are_drawn[converted]",),
    ),
    Mutant(
        "audit-of-the-same-model",
        "if found.model_digest != decision_digest(",
        "if found.model_digest == decision_digest(",
        ("tests/cli/test_audit_command.py::test_the_first_of_the_ranking_are_removed",),
    ),
    Mutant(
        "centre-of-wilson-s-interval",
        "centre = share + squared / 2",
        "centre = share - squared / 2",
        ("tests/pipelines/test_audit.py::test_intervals_are_wilsons",),
    ),
    Mutant(
        "refit-off-what-was-removed",
        "return rows - rows @ self.frame.mT @ self.frame",
        "return rows + rows @ self.frame.mT @ self.frame",
        ("tests/maths/test_head_refit.py::test_no_row_of_the_head_gives_anything_for_what_was_removed",),
    ),
    Mutant(
        "a-constrained-step-keeps-its-constraint",
        "[fixed @ unknown == held / scale]",
        "[fixed @ unknown == -held / scale]",
        ("tests/maths/test_head_refit.py::test_a_constrained_step_solves_its_optimality_conditions",),
    ),
    Mutant(
        "similarities-are-pasted-from-their-least-value",
        "strongest_region(torch.from_numpy(kind.drawn(grid))",
        "strongest_region(torch.from_numpy(grid)",
        ("tests/pipelines/test_refit.py::test_similarities_are_pasted_from_their_least_value",),
    ),
    Mutant(
        "refit-goes-down",
        "target = moved - left.mT @ slope / curvature",
        "target = moved + left.mT @ slope / curvature",
        ("tests/maths/test_head_refit.py::test_many_programs_end_at_the_minimum",),
    ),
    Mutant(
        "refit-spares-edited-classes",
        "if each[c] < right[0][c]]",
        "if each[c] > right[0][c]]",
        ("tests/pipelines/test_refit.py::test_a_class_that_was_edited_may_not_lose",),
    ),
    Mutant(
        "refit-pastes-into-other-classes",
        "if int(owner[prototype]) != batch.class_index]",
        "if int(owner[prototype]) == batch.class_index]",
        ("tests/pipelines/test_refit.py::test_images_are_read_as_they_are_and_with_patches_of_other_classes",),
    ),
    Mutant(
        "side-of-unlike",
        "unlike.score is None or unlike.score > limit",
        "unlike.score is None or unlike.score < limit",
        (
            "tests/cli/test_unlike.py::test_an_image_that_is_less_usual_than_allowed_stops_the_command_after_all_are_explained",
        ),
    ),
    Mutant(
        "scale-of-unlike",
        "return (distance - middle) / (limit - middle)",
        "return (distance - middle) / limit",
        ("tests/pipelines/test_unlikeness.py::test_the_middle_training_image_is_at_0_and_one_in_twenty_are_above_1",),
    ),
    Mutant(
        "an-image-is-left-out-of-its-class",
        "grown = at_length_one(exact[:, 0]), count / (count - 1)",
        "grown = at_length_one(exact[:, 0]), (count - 1) / count",
        ("tests/pipelines/test_unlikeness.py::test_each_training_image_is_left_out_of_its_own_class_s_mean",),
    ),
    Mutant(
        "a-readout-of-other-versions-is-proved-anew",
        'if plan["versions"] != _versions(network):',
        'if not plan["versions"]:',
        (
            "tests/files/test_backbones.py"
            "::test_a_readout_is_proved_anew_where_the_file_has_none_or_another_version_proved_it",
        ),
    ),
    Mutant(
        "parts-that-do-not-add-up-are-not-shown",
        "and not error <= WRONG * spread(",
        "and error <= WRONG * spread(",
        ("tests/files/test_backbones.py::test_parts_that_do_not_add_up_to_the_network_s_logit_are_not_shown",),
    ),
    Mutant(
        "edited-classes-are-not-the-network-s",
        "        logits[:, c] = parts_of_class(",
        "        logits[:, c] += 0 * parts_of_class(",
        ("tests/pipelines/test_verbs.py::test_after_an_edit_of_one_class_the_others_are_answered_by_the_network",),
    ),
    Mutant(
        "shares-of-training-images-count-rows-without-a-place",
        "left = left + (exact[:, 1:].sum(dim=1)",
        "left = left - (exact[:, 1:].sum(dim=1)",
        ("tests/pipelines/test_assembly.py::test_figures_are_those_of_every_image_s_logits[2]",),
    ),
    Mutant(
        "numbers-of-prototypes-on-a-page",
        '"prototype": _integers([place[j] for j in',
        '"prototype": _integers([j for j in',
        ("tests/pipelines/test_pages_of_many.py::test_numbers_of_a_page_are_those_of_the_model[False]",),
    ),
    Mutant(
        "a-class-that-another-process-is-at-is-left-to-it",
        "            if not acquired(lock):",
        "            if acquired(lock) is None:",
        ("tests/cli/test_many_processes.py::test_a_worker_does_not_touch_what_another_process_is_at",),
    ),
    Mutant(
        "a-share-looks-again-once-it-may-write",
        "if not shards.take() or any(c not in shards for c in counts):",
        "if not shards.take():",
        ("tests/cli/test_many_processes.py::test_a_share_that_is_overtaken_at_the_end_leaves_the_file_alone",),
    ),
    Mutant(
        "a-command-looks-again-once-it-may-write",
        "check_writable(prepared.output, prepared.force)  # which a share may have written meanwhile",
        "pass",
        ("tests/cli/test_many_processes.py::test_a_command_does_not_replace_what_a_share_wrote_while_it_began",),
    ),
    Mutant(
        "a-worker-leaves-with-its-leader",
        "    Thread(target=_leave_with_the_leader, daemon=True).start()",
        "    Thread(target=_leave_with_the_leader, daemon=True)",
        ("tests/cli/test_many_processes.py::test_workers_leave_with_a_leader_that_is_killed",),
    ),
    Mutant(
        "most-classes-are-more-than-half",
        "0 < 2 * some < len(model.bias)",
        "0 < some < len(model.bias)",
        ("tests/cli/test_among.py::test_most_classes_are_more_than_half[5-all]",),
    ),
    Mutant(
        "equal-bytes-are-the-same-picture",
        "images[n].sha256 == images[other].sha256",
        "images[n].path == images[other].path",
        ("tests/pipelines/test_duplicates.py::test_equal_bytes_count_once_and_the_first_stays",),
    ),
    Mutant(
        "a-line-is-answered-before-the-next-is-read",
        "    for path in (line for word in words",
        "    for path in list(line for word in words",
        ("tests/cli/test_streams.py::test_explain_answers_each_line_before_the_next_is_read",),
    ),
    Mutant(
        "what-is-known-is-asked-once",
        "        if known is not None and kept:",
        "        if known is not None and wanted in known:",
        (
            "tests/pipelines/test_conversion.py"
            "::test_a_class_that_another_conversion_caches_meanwhile_is_read_all_the_same",
        ),
    ),
)
