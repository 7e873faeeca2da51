"""Assigns each test file a lane: whether it compiles, runs beside others, and in what order.

`pytest -m unit` compiles nothing and starts no server; `integration` has trainers, servers and
processes; `browser` runs a real browser. Tests marked `alone` need the whole machine, and those
marked `full` are left out by default, as they take minutes and show a variant of what others show.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest


class Lane(NamedTuple):
    name: str
    minutes: float = 0.5
    """Rough duration of the file on two idle cores. Long files start first, so that no worker still
    runs one after the others have finished."""
    alone: bool = False
    """Whether the file measures time, uses all cores, or needs a port of a certain number."""
    quick: bool = False
    """Whether optimising the file's programs takes longer than it saves, as they take few steps.
    Not for tests that compare trained parameters bit by bit: users' programs are optimised."""


def unit(minutes: float = 0.1) -> Lane:
    return Lane("unit", minutes)


def integration(minutes: float = 0.5, *, alone: bool = False, quick: bool = False) -> Lane:
    return Lane("integration", minutes, alone, quick)


LANES = {
    "test_access": integration(0.5),
    "test_address": integration(alone=True),
    "test_agents": integration(0.7, quick=True),
    "test_aside": integration(0.5),
    "test_back_browser": Lane("browser", 2, alone=True),
    "test_backlog": integration(),
    "test_bar": unit(),
    "test_callbacks": unit(),
    "test_cameras": unit(),
    "test_cells": integration(),
    "test_cli": integration(1, quick=True),
    "test_control": integration(1.5),
    "test_ctrl_c": integration(4),
    "test_curves": integration(0.2),
    "test_decide": unit(0.2),
    "test_detail": integration(1.5, quick=True),
    "test_devices": integration(0.7),
    "test_docs": integration(1.5, quick=True),
    "test_e2e_browser": Lane("browser", 5, alone=True, quick=True),
    "test_emit": integration(1.5),
    "test_env": integration(0.5),
    "test_epochs": unit(),
    "test_episodes": integration(0.5, quick=True),
    "test_episode": integration(0.7, quick=True),
    "test_examples": integration(0.6),
    "test_export": integration(1),
    "test_export_browser": Lane("browser", 1, alone=True),
    "test_falls": unit(),
    "test_faults": integration(2, quick=True),
    "test_flexes": unit(),
    "test_fork": integration(0.3),
    "test_fuzz": integration(1, quick=True),
    "test_gpu": integration(0.3),
    "test_grants": integration(0.3, quick=True),
    "test_guard": integration(0.5),
    "test_floods": integration(0.7, quick=True),
    "test_folding": integration(0.1),
    "test_growth": integration(2, quick=True),
    "test_handles": unit(),
    "test_hold": unit(),
    "test_host_call": integration(),
    "test_hosts": integration(1.5, alone=True),
    "test_images": integration(0.3),
    "test_imports": integration(0.2),
    "test_inputs": integration(1.5),
    "test_interrupt": unit(),
    "test_keeper": integration(0.2, quick=True),
    "test_lanes": unit(),
    "test_launch": integration(2),
    "test_left_behind": integration(0.5, quick=True),
    "test_limits": integration(0.5, quick=True),
    "test_likeness": Lane("browser", 2, alone=True),
    "test_looks": integration(),
    "test_memory": integration(0.2),
    "test_metrics": unit(),
    "test_newest": unit(),
    "test_niceness": integration(0.2, quick=True),
    "test_nonfinite": integration(1.5, quick=True),
    "test_odd_inputs": integration(0.7),
    "test_notebook": Lane("browser", 1.5, alone=True),
    "test_order": integration(0.7),
    "test_other_trainers": integration(4),
    "test_overlays": integration(0.7),
    "test_own": integration(1.5),
    "test_own_browser": Lane("browser", 1.5, alone=True),
    "test_own_loops": integration(2.5),
    "test_panel": integration(0.3),
    "test_panel_browser": Lane("browser", 1.5, alone=True),
    "test_parts": integration(),
    "test_play": integration(0.7, quick=True),
    "test_playback": unit(0.2),
    "test_playing_on": integration(1.5, quick=True),
    "test_playground": integration(4),
    "test_policies": integration(1.5),
    "test_programs": integration(0.2),
    "test_quiet": integration(0.5),
    "test_randomisation": integration(2),
    "test_run_directory": integration(0.3),
    "test_reader": integration(0.3, quick=True),
    "test_recording": integration(0.5, quick=True),
    "test_remote": integration(0.4, quick=True),
    "test_release": integration(1, quick=True),
    "test_replay": unit(),
    "test_replaced": integration(alone=True),
    "test_requests": integration(0.3, quick=True),
    "test_rooms": unit(),
    "test_rrd": integration(0.1),
    "test_sandbox": integration(2, quick=True),
    "test_saving": integration(0.5),
    "test_scale": integration(alone=True),
    "test_scene": integration(1, quick=True),
    "test_selection": unit(),
    "test_several": integration(quick=True),
    "test_shadows": unit(),
    "test_shown": integration(0.3, quick=True),
    "test_snapshot": integration(0.7, quick=True),
    "test_starts": integration(0.2, quick=True),
    "test_stream": unit(0.3),
    "test_terrain": integration(0.1),
    "test_trainer": integration(0.5, quick=True),
    "test_trainers": integration(3),
    "test_thinning": unit(),
    "test_tracking": integration(0.5),
    "test_tie": integration(),
    "test_timeline": unit(),
    "test_timeline_browser": Lane("browser", 1.5, alone=True),
    "test_training": integration(8),
    "test_trials": integration(0.5, quick=True),
    "test_trials_browser": Lane("browser", 1, alone=True, quick=True),
    "test_transplant": integration(1.5, quick=True),
    "test_twin": integration(2, quick=True),
    "test_versions": unit(),
    "test_viewer": integration(0.3, quick=True),
    "test_window": unit(),
    "test_watchdog": integration(0.1),
    "test_words": unit(),
    "test_wrapping": integration(0.2),
}
"""Lanes by file name. The collection fails for a file without a lane."""

ALONE = {
    "test_the_switch_takes_effect_within_a_fifth_of_a_second",
    "test_few_functions_are_called_while_the_shared_states_lock_is_held",
    "test_ctrl_c_ends_a_training_that_is_held",
    "test_another_signal_lets_a_held_training_go_on_and_its_handler_runs",
    "test_ctrl_c_ends_the_command_during_imports",
    "test_an_open_browser_page_draws_the_picture_as_its_user_sees_it",
    "test_the_page_shows_robots_and_says_what_it_waits_for_within_seconds",
}
"""Tests that run `alone` although the rest of their file does not."""

FULL: dict[str, set[str]] = {
    # test_aside
    "test_a_playground_environment_is_forked_and_driven_by_its_policy": set(),
    # test_back_browser
    "test_after_a_restart_of_the_training_camera_tab_and_controls_are_as_before": {"focused"},
    "test_after_a_dropped_network_all_is_as_before_and_what_others_set_meanwhile_holds": set(),
    "test_behind_a_proxy_at_a_path_of_its_own_the_page_shows_robots_and_steers": set(),
    "test_in_code_server_the_page_shows_robots_and_steers": set(),
    # test_cli
    "test_another_trainer_learns_and_saves_its_policy": set(),
    "test_bad_input_is_reported_without_a_traceback": {
        "misspelt",
        "none",
        "timesteps",
        "trainer",
    },
    # test_control
    "test_evaluation_and_training_are_distinguished_and_shown_side_by_side": set(),
    "test_another_signal_lets_a_held_training_go_on_and_its_handler_runs": set(),
    "test_closing_the_viewer_resumes_a_held_training_and_says_so": set(),
    "test_only_the_64_drawn_of_4096_envs_are_transferred": set(),
    # test_ctrl_c
    "test_ctrl_c_ends_a_held_training_and_the_newest_policy_is_saved": set(),
    "test_ctrl_c_ends_a_training_that_steps_without_a_page": set(),
    "test_ctrl_c_after_the_training_ends_the_command_without_an_error": set(),
    "test_ctrl_c_while_the_policy_is_saved_loses_it_only_if_it_is_pressed_again": set(),
    "test_sigterm_ends_a_training_like_ctrl_c": set(),
    "test_presses_end_a_command_whose_output_is_stuck": {"0.5"},
    # test_detail
    "test_generalized_poses_match_the_details": set(),
    "test_only_the_selected_envs_details_are_sent_and_none_without_a_selection": {"direct"},
    "test_a_held_training_sends_the_selected_envs_details_at_that_step": set(),
    "test_coordinates_of_brax_equal_mujocos_while_no_joint_is_strained": {"spring"},
    "test_mjx_details_have_controls_and_are_one_substep_ahead_of_the_drawn_poses": set(),
    "test_the_envs_own_info_and_metrics_are_sent_and_not_those_of_wrappers": set(),
    # test_devices
    "test_four_devices_form_one_batch_and_are_held_together_under_stock_ppo": set(),
    # test_docs
    "test_python_snippets_of_a_page_run_one_after_the_other": {
        "README.md",
        "security.md",
        "twins-and-sandbox.md",
    },
    # test_e2e_browser
    "test_robots_are_selected_by_a_click_ranked_and_followed": set(),
    "test_each_mode_shows_its_budget_and_moves_the_robots": set(),
    "test_two_pages_agree_on_a_training_that_is_held_and_stepped": set(),
    "test_twins_are_drawn_and_a_robot_is_forked_into_a_sandbox_and_pushed": set(),
    # test_env
    "test_a_wrapper_around_a_vmap_wrapper_sees_the_whole_batch_too": set(),
    # test_episode
    "test_returns_are_whole_across_resets_and_repeated_actions": set(),
    "test_returns_restart_when_the_environment_resets_itself": {"same limit"},
    "test_a_users_outer_wrapper_that_keeps_done_begins_new_episodes": set(),
    "test_stepping_past_the_end_begins_no_new_episode": set(),
    # test_faults
    "test_a_training_goes_on_to_the_same_states_although_a_fault": {
        "every_step-ends_the_pages_loop",
        "latest-ends_the_server",
        "every_step-makes_the_clock_jump",
        "latest-loses_the_port_to_another_program",
        "every_step-has_a_client_vanish",
        "latest-has_a_client_stall",
        "every_step-has_a_client_send_garbage",
        "latest-has_two_hundred_clients_come_and_go",
        "every_step-starts_data_loaders",
    },
    "test_a_state_that_is_nowhere_finite_changes_nothing_that_is_computed": {"nan"},
    "test_of_two_viewers_that_watch_one_after_the_other_either_may_be_closed_first": {"0"},
    "test_an_interpreter_exits_while_a_training_streams_or_is_held": {"pass"},
    # test_examples
    "test_the_own_loop_shows_as_many_robots_of_each_seed": set(),
    "test_the_hand_written_environment_is_shown_and_steps_as_bare": set(),
    "test_the_hand_written_environment_runs_as_an_example": set(),
    # test_export
    "test_ten_seconds_of_a_robot_take_less_than_one_and_a_half_megabytes": {"ant", "go1"},
    # test_fuzz
    "test_random_messages_leave_the_training_and_the_page_alone": set(),
    # test_growth
    "test_a_compiled_program_does_not_keep_a_closed_viewer_alive": set(),
    # test_gpu
    "test_a_watched_program_calls_warp_at_as_many_addresses_as_a_stock_one": set(),
    "test_a_small_case_is_measured_on_a_cpu_beside_one_that_fails": set(),
    # test_hosts
    "test_the_page_survives_the_death_of_a_worker": set(),
    # test_images
    "test_the_selected_robots_images_are_as_the_policy_is_given_them": {"direct", "launch"},
    # test_inputs
    "test_a_plain_class_trains_identically_under_stock_ppo": set(),
    "test_poses_equal_mujocos_wherever_the_state_keeps_them": set(),
    "test_python_numbers_only_at_reset_and_a_batch_inside_are_shown_too": set(),
    "test_an_env_unpickled_in_another_process_steps_without_a_viewer_until_given_one": set(),
    "test_done_and_reward_may_be_any_number_or_array_and_the_rewards_sum_is_shown": {
        "False-1",
        "numpy-dict",
    },
    "test_observations_may_be_any_pytree_and_are_named_by_their_paths": {
        "nested",
        "None",
    },
    "test_a_copy_shares_the_viewer_and_is_the_same_env": {"Toy-deepcopy"},
    "test_no_subclass_of_the_users_class_is_made": {"Mine"},
    # test_launch
    "test_four_devices_are_held_at_the_same_step": set(),
    "test_a_program_for_cuda_has_no_extra_branch_and_one_extra_call": {"cart-pole"},
    "test_a_nan_is_found_and_holds_the_training_at_its_step": {"at once-True"},
    "test_randomised_models_are_copied_once_and_again_after_a_reset": {"at once"},
    "test_a_fault_of_ours_leaves_the_training_alone": set(),
    "test_each_step_is_seen_once_and_nothing_that_is_computed_changes": {"at once"},
    # test_left_behind
    "test_thirty_environments_of_one_viewer_are_freed_when_it_is_closed": set(),
    "test_trainings_one_after_the_other_leave_nothing": set(),
    # test_likeness
    "test_robots_look_as_in_mujoco": set(),
    "test_a_small_robot_is_readable_in_black_or_white_and_casts_no_false_shadows": set(),
    # test_nonfinite
    "test_stock_ppo_is_held_when_a_reward_turns_nan_and_its_assertion_is_explained": set(),
    "test_the_command_line_reports_it_and_saves_no_nonfinite_policy": set(),
    # test_notebook
    "test_the_example_runs_and_shows_the_page_and_what_was_learned": set(),
    "test_the_kernels_interrupt_ends_a_held_training_and_a_cell_run_again_leaves_one_viewer": set(),
    # test_order
    "test_states_arrive_unchanged_at_any_place_in_the_chain": set(),
    "test_pixels_are_neither_sent_nor_checked": set(),
    # test_other_trainers
    "test_results_are_identical_and_every_state_arrives": set(),
    "test_rejaxs_evaluations_are_told_apart_by_an_environment_of_their_own": set(),
    # test_own
    "test_the_death_of_a_process_is_reported_and_it_restarts_with_its_page": set(),
    # test_own_browser
    "test_two_pages_open_replays_and_scrubbing_one_moves_no_other_page": set(),
    "test_it_is_reached_in_a_frame_with_the_token_in_its_path": set(),
    # test_own_loops
    "test_each_step_is_seen_once_and_results_are_the_same": {
        "nested_vmap-6-direct",
        "nested_vmap-6-io_callback",
        "nested_vmap-6-launch",
        "single_without_vmap-1-direct",
    },
    "test_a_batch_divided_among_devices_by_xla_is_seen_whole": {"direct"},
    "test_jax_debug_nans_finds_no_nan_of_ours": set(),
    "test_numbers_of_64_bits_stay_as_they_are_and_are_shown": set(),
    "test_with_them_sums_of_products_differ_by_a_rounding_at_most": {"batched_cond"},
    "test_without_fused_multiply_adds_sums_of_products_are_the_same_watched_and_bare": set(),
    # test_play
    "test_a_policy_of_a_run_directory_acts_as_it_did_in_the_training": {"ppo", "sac"},
    # test_playground
    "test_a_legged_robot_is_trained_with_domain_randomisation": set(),
    "test_episodes_are_told_apart_with_and_without_a_full_reset": {"False"},
    # test_panel_browser
    "test_a_page_says_that_its_server_is_gone_and_comes_back_by_itself": set(),
    # test_policies
    "test_ppo_hands_out_its_policy_after_each_epoch_and_compiles_once": set(),
    "test_other_trainers_hand_out_policies_with_their_evaluations": {"ars"},
    "test_other_trainers_hand_out_policies_between_their_evaluations": set(),
    "test_ppos_divided_epochs_reset_as_often_and_hand_out_more_policies": set(),
    # test_randomisation
    "test_states_arrive_and_model_differences_are_sent_once_and_drawn": set(),
    # test_release
    "test_the_wheel_has_every_file_of_the_package_and_the_licence": set(),
    "test_there_is_one_version": set(),
    "test_the_wheel_installs_and_trains_in_a_clean_environment": set(),
    "test_states_also_arrive_from_around_the_randomising_wrapper": set(),
    # test_recording
    "test_switching_off_stops_a_recording_as_well": set(),
    "test_recorded_episodes_are_what_was_stepped_without_a_page": {"direct"},
    # test_sandbox
    "test_with_the_trainings_solver_an_ant_moves_as_in_the_training": set(),
    "test_a_pendulum_is_balanced_by_its_policy_and_falls_when_limp": {"generalized"},
    # test_scene
    "test_poses_on_screen_are_the_trainers": set(),
    "test_orientations_on_screen_are_the_trainers": set(),
    "test_cells_without_an_env_have_no_robot": set(),
    # test_shown
    "test_positions_are_right_while_a_robot_is_followed": set(),
    "test_a_function_runs_on_the_pages_loop_once_and_can_be_removed": set(),
    # test_tie
    "test_a_script_that_ends_while_steps_are_still_computed_ends_well": set(),
    "test_a_loop_that_keeps_one_part_of_each_state_is_seen_at_each_step": {
        "direct-observation",
        "direct-reward",
        "direct-done",
        "direct-coordinates",
        "launch-done",
    },
    # test_timeline_browser
    "test_the_moment_is_dragged_stepped_looped_and_played_at_any_speed": set(),
    "test_a_page_at_a_path_of_its_own_and_an_onlookers_see_the_same": set(),
    # test_trainers
    "test_parameters_are_identical_and_every_state_arrives": set(),
    # test_training
    "test_a_viewer_closed_in_the_middle_leaves_the_training_alone": set(),
    "test_parameters_are_identical_in_two_trainings_of_one_env": set(),
    "test_parameters_are_identical_in_real_time_with_a_separate_eval_env": set(),
    "test_parameters_are_identical_whatever_is_done_in_the_page": set(),
    "test_parameters_are_identical_on_the_other_backends": set(),
    "test_parameters_are_identical_with_twins_action_repeat_and_no_pmapped_reset": set(),
    "test_a_fault_while_drawing_leaves_the_training_alone": set(),
    "test_the_switch_takes_effect_within_a_fifth_of_a_second": set(),
    # test_transplant
    "test_native_physics_has_the_poses_at_the_start_of_the_last_substep": set(),
    "test_playgrounds_cartpole_has_the_same_observations_and_rewards": set(),
    "test_a_pendulums_step_is_the_same_around_another_physics": {"spring"},
    "test_a_training_traced_at_the_same_time_is_not_disturbed": {"brax"},
    "test_a_humanoids_controls_are_scaled_and_so_is_its_observation_of_them": set(),
    # test_twin
    "test_with_contact_twins_part_slowly_and_pass_the_threshold_once": set(),
    "test_without_contact_mjx_and_twin_agree_to_a_millimetre_over_50_steps": set(),
    "test_a_viewers_twins_stand_where_the_robots_do_and_cost_nothing_while_off": {"direct"},
    "test_the_control_is_the_input_of_the_physics": set(),
    "test_the_page_says_so_when_a_control_is_not_known": set(),
    "test_a_control_that_cannot_be_seen_is_not_invented_and_can_be_given": set(),
    "test_playgrounds_environments_have_twins": set(),
    "test_twins_need_consecutive_steps_and_the_page_says_so": set(),
}
"""Tests left out by default, and of each the parameters that stay: what these show of a trainer, a
backend or a mechanism, others show of another one. A parameter added to such a test is left out."""


def lane_of(path: Path) -> Lane:
    """Returns the lane of a file. Raises `pytest.Collector.CollectError` if it has none."""
    try:
        return LANES[path.stem]
    except KeyError:
        raise pytest.Collector.CollectError(
            f"{path.name} has no lane: give it one in tests/lanes.py, where unit is what compiles "
            "nothing and starts no server"
        ) from None


COLLECTED: dict[str, set[str]] = {}
"""The parameters of each test of `FULL` that was collected."""


def assign(items: Sequence[pytest.Item]) -> None:
    """Marks each test with the lane of its file, with `alone` if it must run alone, and with `full`
    if it is left out by default."""
    for item in items:
        lane, name = lane_of(item.path), getattr(item, "originalname", item.name)
        item.add_marker(lane.name)
        if lane.alone or name in ALONE:
            item.add_marker("alone")
        if name in FULL:
            parameters = item.name.removeprefix(name)[1:-1]
            COLLECTED.setdefault(name, set()).add(parameters)
            if parameters not in FULL[name]:
                item.add_marker("full")


def longest_first(items: list[pytest.Item]) -> None:
    """Sorts tests by their files' minutes, longest first, in place; keeps the order in a file."""
    items.sort(key=lambda item: -lane_of(item.path).minutes)
