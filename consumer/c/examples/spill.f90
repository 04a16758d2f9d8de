! Leases memory on another machine, puts an array there that does not fit here, reads it back, compares, and gives the memory
! back.
!
!   gfortran "$(pkg-config --variable=fortran overbank)" spill.f90 $(pkg-config --libs overbank) -o spill
!   OVERBANK_AUTHD=head-1:7471 ./spill [NUMBERS] [DEVICE]
program spill
  use, intrinsic :: iso_c_binding
  use, intrinsic :: iso_fortran_env, only: error_unit
  use overbank
  implicit none

  type(c_ptr) :: client, lease
  type(overbank_attach_options), target :: options
  real(c_double), allocatable, target :: out(:), back(:)
  character(kind=c_char, len=64), target :: device
  character(kind=c_char) :: id(OVERBANK_LEASE_ID_LEN)
  character(len=64) :: argument
  integer(c_int64_t) :: numbers, bytes, at
  logical(c_bool) :: wiped

  numbers = 100000
  if (command_argument_count() >= 1) then
    call get_command_argument(1, argument)
    read (argument, *) numbers
  end if
  bytes = numbers * c_sizeof(1.0_c_double)

  call check(overbank_connect(c_null_ptr, client), "connecting")
  call check(overbank_lease_create(client, bytes, 600000_c_int64_t, 0_c_int32_t, lease), "leasing")
  call check(overbank_lease_id(lease, id, size(id, kind=c_size_t)), "asking which lease it is")

  ! The first read or write would do this too, with the default options.
  options%size = c_sizeof(options)
  if (command_argument_count() >= 2) then
    call get_command_argument(2, argument)
    device = trim(argument) // c_null_char
    options%device = c_loc(device)
  end if
  call check(overbank_lease_attach(lease, c_loc(options)), "attaching")

  allocate (out(numbers), back(numbers))
  do at = 1, numbers
    out(at) = sqrt(real(at, c_double))
  end do
  call check(overbank_lease_write(lease, 0_c_int64_t, c_loc(out), int(bytes, c_size_t)), "writing")
  call check(overbank_lease_read(lease, 0_c_int64_t, c_loc(back), int(bytes, c_size_t)), "reading")
  if (any(out /= back)) then
    write (error_unit, '(a)') "spill: what came back is not what was written"
    stop 1
  end if

  call check(overbank_lease_release(lease, 5000_c_int64_t, wiped), "releasing")
  call check(overbank_client_close(client), "closing")
  print '(i0, 99a)', numbers, " numbers went to lease ", id(1:OVERBANK_LEASE_ID_LEN - 1), " and came back", &
    merge("; it is wiped", "             ", wiped)

contains

  ! Ends the program where a call failed, with the library's own words.
  subroutine check(status, doing)
    integer(c_int), intent(in) :: status
    character(len=*), intent(in) :: doing
    if (status == OVERBANK_OK) return
    write (error_unit, '(4a)') "spill: ", doing, ": ", overbank_text(overbank_last_error())
    stop 1
  end subroutine check

end program spill
