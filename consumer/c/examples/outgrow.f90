! Uses more memory than it may have here: an array in a region of which only a part is on this machine at a time, the rest sealed
! in a lease. Fills it in, sums it up, says what came and went, and gives the memory back.
!
!   gfortran "$(pkg-config --variable=fortran overbank)" outgrow.f90 $(pkg-config --libs overbank) -o outgrow
!   OVERBANK_AUTHD=head-1:7471 ./outgrow [NUMBERS] [LOCAL BYTES] [DEVICE]
program outgrow
  use, intrinsic :: iso_c_binding
  use, intrinsic :: iso_fortran_env, only: error_unit
  use overbank
  implicit none

  type(c_ptr) :: client, lease, region, start
  type(overbank_attach_options), target :: attach
  type(overbank_region_options), target :: options
  type(overbank_stats) :: stats
  real(c_double), pointer :: numbers(:)
  real(c_double) :: total
  character(kind=c_char, len=64), target :: device
  character(len=64) :: argument
  integer(c_size_t) :: length
  integer(c_int64_t) :: count, at
  logical(c_bool) :: wiped

  count = 1000000
  options%size = c_sizeof(options)
  options%local_bytes = 1048576
  attach%size = c_sizeof(attach)
  options%attach = c_loc(attach)
  if (command_argument_count() >= 1) then
    call get_command_argument(1, argument)
    read (argument, *) count
  end if
  if (command_argument_count() >= 2) then
    call get_command_argument(2, argument)
    read (argument, *) options%local_bytes
  end if
  if (command_argument_count() >= 3) then
    call get_command_argument(3, argument)
    device = trim(argument) // c_null_char
    attach%device = c_loc(device)
  end if

  call check(overbank_connect(c_null_ptr, client), "connecting")
  ! A region has whole pages: one more than needed, for what is left over.
  call check(overbank_lease_create(client, count * 8 + 4096, 600000_c_int64_t, 0_c_int32_t, lease), "leasing")
  call check(overbank_region_open(lease, c_loc(options), region), "making memory of the lease")
  call check(overbank_region_memory(region, start, length), "asking where it is")

  ! An array like any other, until the region is released.
  call c_f_pointer(start, numbers, [count])
  do at = 1, count
    numbers(at) = real(at, c_double)
  end do
  total = sum(numbers)
  if (total /= real(count, c_double) * real(count + 1, c_double) / 2) then
    write (error_unit, '(a)') "outgrow: what came back is not what was written"
    stop 1
  end if

  stats%size = c_sizeof(stats)
  call check(overbank_region_stats(region, stats), "asking what came and went")
  nullify (numbers)
  call check(overbank_region_release(region, 5000_c_int64_t, wiped), "releasing")
  call check(overbank_client_close(client), "closing")
  print '(3(i0, a), a)', count, " numbers have the right sum; ", stats%evicted, " pages went, ", stats%fetched, " came", &
    merge("; it is wiped", "             ", wiped)

contains

  ! Ends the program where a call failed, with the library's own words.
  subroutine check(status, doing)
    integer(c_int), intent(in) :: status
    character(len=*), intent(in) :: doing
    if (status == OVERBANK_OK) return
    write (error_unit, '(4a)') "outgrow: ", doing, ": ", overbank_text(overbank_last_error())
    stop 1
  end subroutine check

end program outgrow
